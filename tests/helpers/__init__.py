"""What tests share: a tiny model, toy tasks, made-up run directories, paths."""
