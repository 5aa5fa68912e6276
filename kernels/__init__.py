"""Of each op two files: its plain-PyTorch reference, and in `<op>_triton.py` its Triton kernel."""
