"""A trained run -> predictions elsewhere: predict, export, share, a page. Reads no pickle."""
