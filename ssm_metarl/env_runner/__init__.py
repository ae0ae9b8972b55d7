"""Environments as families of tasks. Importing this package registers the native families with gymnasium."""

from ssm_metarl.env_runner import families as families
