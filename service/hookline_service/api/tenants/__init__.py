"""TenantService: the tenants of the deployment."""
