import { declareBodies } from "./bodies.ts";

await declareBodies("chromium-webgpu");
