// Ask the service; of requests of one kind only the newest is heard.

const running = new Map();
let token = sessionStorage.getItem("token") ?? "";

export function setToken(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export class Unreachable extends Error {}

// A fault of the network comes as a TypeError, as one of this page would; what is no JSON is not from the service.
function lost(error) {
  throw error instanceof TypeError || error instanceof SyntaxError ? new Unreachable() : error;
}

export async function ask(path, body) {
  running.get(path)?.abort();
  const control = new AbortController();
  running.set(path, control);
  const headers = body ? { "content-type": "application/json" } : {};
  if (token) headers.authorization = `Bearer ${token}`;
  const given = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal: control.signal };
  const answer = await fetch(path, given).catch(lost);
  const told = await answer.json().catch(lost);
  if (!answer.ok) throw new Refused(answer.status, told.detail);
  control.signal.throwIfAborted();
  return told;
}

// Hear no answer to what was asked so far.
export function stop() {
  for (const control of running.values()) control.abort();
}

// Call a function once nothing has happened for a while.
export function settled(call, wait) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), wait);
  };
}
