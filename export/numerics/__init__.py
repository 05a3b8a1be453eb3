"""fp16 that holds: value ranges measured, VAEs scaled, float32 islands placed, and bf16 emulated on the CPU."""
