"""Commands about the machine: doctor."""
