"""What is audited: networks with named layers."""
