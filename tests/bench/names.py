"""What targets, loads and plots are called in the report."""

TITLES = {
    "gateway-rocketmq": "gateway on RocketMQ",
    "gateway-local": "gateway, embedded",
    "gateway-strict": "gateway on RocketMQ, names and signatures checked",
    "mosquitto": "mosquitto",
    "rocketmq": "bare RocketMQ",
    "fresh-gateway": "gateway, embedded",
    "fresh-mosquitto": "mosquitto",
    "sink": "sink",
    "uplink1": "uplink QoS 1, 1 in flight, messages",
    "uplink16": "uplink QoS 1, 16 in flight, messages",
    "single": "bare RocketMQ, a message a request",
    "fanout0": "fan-out 1 to 1,000, QoS 0, deliveries",
    "fanout1": "fan-out 1 to 1,000, QoS 1, deliveries",
    "devices": "device to device over 1,000 topics, QoS 1, messages",
    "devices500": "device to device at 500 msg/s, end to end",
    "uplink500": "uplink at 500 msg/s, until the PUBACK",
    "app200": "server app to device at 200 msg/s, end to end",
    "uplink.png": "Uplink",
    "fanout.png": "Fan-out",
    "devices.png": "Device to device",
}
