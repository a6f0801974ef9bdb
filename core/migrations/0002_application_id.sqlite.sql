-- "cnpc" in ASCII: whose database this is, for everything that may find the file somewhere
PRAGMA application_id = 0x636e7063;
