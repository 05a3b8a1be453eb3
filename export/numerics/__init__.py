"""Networks in half precision: ranges measured, VAEs scaled and float32 islands placed for fp16; bf16 emulated."""
