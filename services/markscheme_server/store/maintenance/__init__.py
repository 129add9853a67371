"""Work on whole tables beside a running service: migration, pruning, deletion of teams."""
