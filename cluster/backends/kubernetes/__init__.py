"""Pools as Deployments: their sizes follow the plan through the Kubernetes API, in static mode."""
