"""What conversion costs, measured against what else people use. Not part of the package that is installed."""
