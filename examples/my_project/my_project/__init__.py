"""A project of one's own: a task, a reward and a layer spec, used by slime-launch through YAML."""
