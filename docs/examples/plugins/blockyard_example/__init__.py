"""Plug-ins for Blockyard, as an example to copy."""
