"""What every Flotta process needs: settings, logs, metrics, errors, auth, servers, supervised tasks."""
