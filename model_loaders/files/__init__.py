"""Weight files of every format: their headers, the names of their tensors in each dialect, the tensors."""
