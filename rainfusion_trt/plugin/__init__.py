"""Building librainfusion_trt.so, and finding it again."""
