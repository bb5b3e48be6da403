"""The commands: parse, one library call, print. Heavy imports wait inside the commands."""
