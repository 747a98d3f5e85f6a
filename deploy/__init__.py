"""What runs the gateway and the servers around it. Not part of the installed program."""
