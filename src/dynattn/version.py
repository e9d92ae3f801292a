"""The version of the package, for those whom the package itself imports."""

VERSION = "0.1.0"
