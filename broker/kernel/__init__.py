"""One kernel interface per file; ctypes lives only here. Imports errors and endpoints only."""
