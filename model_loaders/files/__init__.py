"""Weight files of every format: what their headers say, what their names mean, their tensors."""
