"""How many LoRA ranks each module of each client gets, and what they cost in memory and bytes."""
