/**
 * The devices by name: how each one's backend is opened (once, when it is first needed, never at import), and which
 * device new tensors live on. What is queued on a device is `flush.ts`.
 */
import type { Backend } from "../backends/backend.ts";
import { BackendError } from "../core/errors.ts";
import { backends, type Open, usualDevice } from "./backends.ts";
import { env } from "./debug.ts";

interface Device {
  readonly name: string;
  open: Open;
  backend: Backend | null;
  opening: Promise<Backend> | null;
}

const device = (name: string, open: Open): Device => ({ name, open, backend: null, opening: null });

const devices = new Map(Object.entries(backends).map(([name, open]) => [name, device(name, open)]));
let defaultName: string | null = null;
/** Whether somebody asked for the default device by name; a fallback is allowed only if nobody did. */
let asked = false;

/** Adds a device, or replaces one that has not been opened. `open` is called once, when the device is first needed. */
export function registerBackend(name: string, open: () => Backend | Promise<Backend>): void {
  const known = devices.get(name);
  if (known?.backend || known?.opening)
    throw new BackendError(`registerBackend: "${name}" is already open; register it before its first use`);
  devices.set(name, device(name, open));
}

function find(name: string): Device {
  const device = devices.get(name);
  if (!device)
    throw new BackendError(
      `there is no device "${name}"; known are ${[...devices.keys()].join(", ")} (registerBackend adds one)`,
    );
  return device;
}

/** The devices that can be asked for; whether one works shows when it is opened. */
export const deviceNames = (): string[] => [...devices.keys()];

/** Sets the device on which new tensors live (torch.set_default_device). Throws BackendError where the name is unknown. */
export function setDevice(name: string): void {
  find(name);
  defaultName = name;
  asked = true;
}

/** The device on which new tensors live: what `setDevice` chose, else NABLA_DEVICE, else "cpu" (in a browser "wasm"). */
export function defaultDevice(): string {
  if (defaultName === null) {
    const wanted = env("NABLA_DEVICE");
    if (wanted) setDevice(wanted);
    else defaultName = usualDevice;
  }
  return defaultName as string;
}

/** Checks a device that a user named. */
export function checkDevice(name: string): string {
  find(name);
  return name;
}

/** The backend if it is open, or can be opened without waiting; else null. */
export function openBackend(name: string): Backend | null {
  const device = find(name);
  if (device.backend || device.opening) return device.backend;
  const opened = device.open(asked);
  if (opened instanceof Promise) {
    device.opening = opened.then(
      (backend) => {
        device.backend = backend;
        return backend;
      },
      (error: unknown) => {
        device.opening = null; // the next use tries again
        throw error;
      },
    );
    device.opening.catch(() => {}); // whoever needs the device awaits it and sees the error
    return null;
  }
  device.backend = opened;
  return opened;
}

/** The backend if somebody has opened it. */
export const openedBackend = (name: string): Backend | null => find(name).backend;

/** The backend, opened if need be. Throws BackendError with the reason where it does not work here. */
export function backendOf(name: string): Backend | Promise<Backend> {
  return openBackend(name) ?? (find(name).opening as Promise<Backend>);
}
