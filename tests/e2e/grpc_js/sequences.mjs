// What @grpc/grpc-js clients do, against the server at argv[2]; prints one JSON object of outcomes.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";

const [address, file] = process.argv.slice(2);
const request = readFileSync(file);
const bytes = (content) => content;
const service = "/inference.GRPCInferenceService/";

const connect = (options = {}) =>
  new grpc.Client(address, grpc.credentials.createInsecure(), { "grpc.use_local_subchannel_pool": 1, ...options });

// Resolves to [code, bytes of the answer].
const unary = (client, content = request, { metadata = {}, options = {}, method = "ModelInfer", meanwhile } = {}) =>
  new Promise((resolve) => {
    const fields = new grpc.Metadata();
    for (const [name, value] of Object.entries(metadata)) fields.set(name, value);
    const call = client.makeUnaryRequest(service + method, bytes, bytes, content, fields, options, (error, answer) =>
      resolve([error ? error.code : 0, answer ? answer.length : 0]),
    );
    meanwhile?.(call);
  });

// Resolves to [code, number of answers]; `act(call)` sends.
const stream = (client, act) =>
  new Promise((resolve) => {
    let answers = 0;
    const call = client.makeBidiStreamRequest(service + "ModelStreamInfer", bytes, bytes, new grpc.Metadata(), {});
    call.on("data", () => answers++);
    call.on("error", () => {});
    call.on("status", (status) => resolve([status.code, answers]));
    act(call);
  });

const many = (count, make) => Promise.all(Array.from({ length: count }, (_, index) => make(index)));
const codes = (results) => [...new Set(results.map(([code]) => code))].sort((a, b) => a - b);

const client = connect();
const outcomes = {};
outcomes.unary = await unary(client);
outcomes.parallel = codes(await many(200, () => unary(client)));
outcomes.gzip = (await unary(connect({ "grpc.default_compression_algorithm": 2 })))[0];
outcomes.large = (await unary(client, Buffer.alloc(9_000_000)))[0];
outcomes.garbage = (await unary(client, Buffer.alloc(100, 255)))[0];
outcomes.unknown = (await unary(client, request, { method: "Nothing" }))[0];
outcomes.metadata = (await unary(client, request, { metadata: { "x-large": "y".repeat(40_000) } }))[0];
outcomes.deadline = (await unary(client, request, { options: { deadline: Date.now() - 1 } }))[0];
outcomes.cancelled = codes(await many(100, () => unary(client, request, { meanwhile: (call) => call.cancel() })));
outcomes.cancelledLater = codes(
  await many(100, () => unary(client, Buffer.alloc(200_000), { meanwhile: (call) => setTimeout(() => call.cancel(), 1) })),
);
outcomes.stream = await stream(client, (call) => {
  for (let index = 0; index < 50; index++) call.write(request);
  call.end();
});
outcomes.streamCancelled = await stream(client, (call) => {
  call.once("data", () => call.cancel());
  call.write(request);
});
outcomes.streamEmpty = await stream(client, (call) => call.end());
outcomes.keepalive = codes(
  await many(3, async (index) => {
    const pinging = connect({ "grpc.keepalive_time_ms": 200, "grpc.keepalive_permit_without_calls": 1 });
    await new Promise((resolve) => setTimeout(resolve, 700 * index));
    return unary(pinging);
  }),
);
// After all of this, on the same connection:
outcomes.still = codes(await many(50, () => unary(client)));
client.close();
console.log(JSON.stringify(outcomes));
process.exit(0);
