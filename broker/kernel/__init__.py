"""One kernel interface per file; ctypes lives only here. Imports only errors and endpoints of ours."""
