"""Where other libraries meet this one."""
