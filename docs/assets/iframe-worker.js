// Browsers start no worker for a page that is a file. There, this one runs the script in a hidden frame, so that the
// search works without a server.
if (location.protocol === "file:") {
  // As between real workers: a copy, and later.
  const send = (receiver, data) => {
    const copy = structuredClone(data)
    setTimeout(() => receiver.onmessage?.(new MessageEvent("message", { data: copy })))
  }
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<body>"
      this.ready = new Promise((resolve) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow
          inside.postMessage = (data) => send(this, data)
          const script = inside.document.createElement("script")
          script.src = new URL(url, location.href).href
          script.onload = () => resolve(inside)
          script.onerror = (event) => this.onerror?.(event)
          inside.document.body.append(script)
        }
      })
      document.documentElement.append(this.frame)
    }
    postMessage(data) {
      this.ready.then((inside) => send(inside, data))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
