"""What is in an adapter, known from its files alone: numpy and safetensors, no torch."""
