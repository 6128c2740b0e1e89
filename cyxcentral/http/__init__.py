"""The HTTP front of central: the verbs of cyxnet.subjects as a REST API. Loaded only where it is asked for."""
