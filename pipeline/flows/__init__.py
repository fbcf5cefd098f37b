"""What crosses stages: the commands of `cli.py`, each as a function that a page or a notebook can call as well."""
