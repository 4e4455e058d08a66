"""OperationsService: the state of the deployment."""
