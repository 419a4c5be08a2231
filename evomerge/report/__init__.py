"""What a study shows: progress while it runs, tables and pages when it ends."""
