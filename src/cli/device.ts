/** Choosing and opening the device that a command computes on, before it does anything long. */

/**
 * Opens the device: the one named, else NABLA_DEVICE, else "cpu". Returns the name of the backend that computes: "wasm" where
 * nobody asked for "cpu" and there is no C compiler (which has then been said on stderr). Throws BackendError for a device
 * that was asked for and does not work.
 */
export async function openDevice(name: string | undefined): Promise<string> {
  const { backendOf, defaultDevice, setDevice } = await import("../execution/index.ts");
  if (name !== undefined) setDevice(name);
  return (await backendOf(defaultDevice())).name;
}
