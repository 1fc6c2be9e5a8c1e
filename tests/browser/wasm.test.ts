import { declareBodies } from "./bodies.ts";

await declareBodies("chromium-wasm");
