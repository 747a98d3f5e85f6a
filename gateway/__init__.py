"""An open gateway between MQTT devices and Apache RocketMQ."""

__version__ = "0.1.0"
