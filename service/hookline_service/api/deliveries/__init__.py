"""DeliveryService: deliveries and their attempts."""
