"""The commands of the command line, by what they are for: importing a module adds its commands."""
