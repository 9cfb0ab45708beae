/** @file Imported before onnxruntime-node: tells it not to collect and send usage data, which it does unless told so before it loads. */
process.env.ORT_DISABLE_TELEMETRY ??= '1'
