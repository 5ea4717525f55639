"""The hot ops in Triton: one file each, with the names and signatures of runtime.reference."""
