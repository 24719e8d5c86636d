// The sheet: strokes by mouse, touch, pen and keyboard, or a picture; and the file that is sent.

export const WIDTH = 560;
export const HEIGHT = 420;
const SENT = 0.5; // scale of the drawing that is sent: four times as many pixels tell no more
const ACCEPTED = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif"];
// Larger files are scaled down here: phones take pictures of more bytes and pixels than a server
// may accept.
const LARGEST_BYTES = 4 * 1024 * 1024;
const MOST_PIXELS = 4_000_000;
const LONGEST_SIDE = 2000;
const SMALL_SIDE = 100; // pictures below this show their pixels
const MOST_STATES = 200;
const MOST_PICTURES = 10; // among them: one of MOST_PIXELS takes 16 MB

export class Pad {
  // `changed(isNew)` is called when the content changes; isNew if it is no longer the same drawing.
  // `penMoved(isDown)` is called when the pen of the keyboard is put down or lifted.
  constructor(canvas, changed, penMoved) {
    Object.assign(this, { canvas, changed, penMoved });
    this.pen = 30;
    this.strokes = []; // of points [x, y, width]
    this.picture = null; // {image, file, name}
    this.history = [];
    this.stroke = null;
    this.cursor = null; // of the keyboard, {x, y}; its pen is down while there is a stroke
    this.isDown = false; // that pen, as it was last drawn
    this.opened = 0; // files so far
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => {
        if (!this.cursor && event.pointerId === this.pointer) this.stroke = null;
      });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.showCursor(null));
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)", `(resolution: ${devicePixelRatio}dppx)`]) {
      matchMedia(query).addEventListener("change", () => this.draw());
    }
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  get isEmpty() {
    return !this.picture && !this.strokes.length;
  }

  // The width and height of the picture as people see it.
  get size() {
    return this.picture ? [this.picture.image.width, this.picture.image.height] : [WIDTH * SENT, HEIGHT * SENT];
  }

  // Where the picture lies on the sheet: x, y and scale.
  get placement() {
    const [width, height] = this.size;
    const scale = Math.min(WIDTH / width, HEIGHT / height);
    return [(WIDTH - width * scale) / 2, (HEIGHT - height * scale) / 2, scale];
  }

  remember() {
    this.history.push({ picture: this.picture, strokes: this.strokes });
    const pictures = () => new Set(this.history.map((state) => state.picture).filter(Boolean)).size;
    while (this.history.length > MOST_STATES || pictures() > MOST_PICTURES) this.history.shift();
  }

  undo() {
    const state = this.history.pop();
    if (!state) return;
    Object.assign(this, state, { stroke: null });
    this.update(true);
  }

  clear() {
    if (this.isEmpty) return;
    this.remember();
    Object.assign(this, { picture: null, strokes: [], stroke: null });
    this.update(true);
  }

  async open(blob, name) {
    const mine = ++this.opened;
    let file = blob;
    let image = await bitmap(blob);
    const isAccepted = ACCEPTED.includes(blob.type);
    if (!image) {
      throw new Error(`This browser cannot open the file; ${isAccepted ? "it may be damaged, or too large" : "PNG, JPEG, WebP, BMP and GIF work"}.`);
    }
    if (!isAccepted || blob.size > LARGEST_BYTES || image.width * image.height > MOST_PIXELS) {
      const scale = Math.min(1, LONGEST_SIDE / Math.max(image.width, image.height));
      file = await smaller(image, scale);
      image.close(); // a large one has hundreds of megabytes
      image = await bitmap(file);
      name = name.replace(/\.[^.]*$/, "") + ".jpg";
    }
    if (mine !== this.opened) return; // a file that was chosen later was opened sooner
    this.remember();
    Object.assign(this, { picture: { image, file, name }, strokes: [], stroke: null });
    this.update(true);
  }

  // A stroke with its first point; it begins a new sheet if there is a picture.
  begin(x, y, width) {
    this.remember();
    const isNew = this.picture !== null;
    this.stroke = [[x, y, width]];
    this.strokes = isNew ? [this.stroke] : [...this.strokes, this.stroke];
    this.picture = null;
    this.update(isNew);
  }

  down(event) {
    if (event.button !== 0 || this.stroke) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.showCursor(null);
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.begin(...this.point(event));
  }

  move(event) {
    if (!this.stroke || event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.stroke.push(this.point(each));
    this.update(false);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const width = event.pointerType === "pen" ? this.pen * (0.5 + event.pressure) : this.pen;
    const x = ((event.clientX - box.left) * WIDTH) / box.width;
    const y = ((event.clientY - box.top) * HEIGHT) / box.height;
    return [Math.round(x * 10) / 10, Math.round(y * 10) / 10, width];
  }

  key(event) {
    if (this.stroke && !this.cursor) return; // a mouse or a finger draws
    const step = event.shiftKey ? 40 : 10;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const cursor = this.cursor ?? { x: WIDTH / 2, y: HEIGHT / 4 };
    if (moves[event.key]) {
      const [x, y] = moves[event.key];
      cursor.x = Math.min(WIDTH, Math.max(0, cursor.x + x * step));
      cursor.y = Math.min(HEIGHT, Math.max(0, cursor.y + y * step));
      this.cursor = cursor;
      if (this.isDown) {
        this.stroke.push([cursor.x, cursor.y, this.pen]);
        this.update(false);
      }
    } else if (event.key === " ") {
      this.cursor = cursor;
      if (this.isDown) this.stroke = null;
      else this.begin(cursor.x, cursor.y, this.pen);
    } else if (event.key === "Backspace" || event.key === "Delete") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.draw();
  }

  showCursor(cursor) {
    if (this.cursor) this.stroke = null;
    this.cursor = cursor;
    this.draw();
  }

  update(isNew) {
    this.draw();
    this.changed(isNew);
  }

  draw() {
    const isDown = Boolean(this.cursor && this.stroke);
    if (isDown !== this.isDown) this.penMoved((this.isDown = isDown));
    const { canvas } = this;
    const ratio = (canvas.clientWidth / WIDTH) * devicePixelRatio;
    const [width, height] = [Math.round(WIDTH * ratio), Math.round(HEIGHT * ratio)];
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(width / WIDTH, 0, 0, height / HEIGHT, 0, 0);
    context.clearRect(0, 0, WIDTH, HEIGHT);
    if (this.picture) {
      const [x, y, scale] = this.placement;
      const [w, h] = this.size;
      context.imageSmoothingEnabled = Math.max(w, h) > SMALL_SIDE;
      context.drawImage(this.picture.image, x, y, w * scale, h * scale);
    }
    const style = getComputedStyle(canvas);
    paint(context, this.strokes, style.color);
    if (this.cursor) {
      context.strokeStyle = style.caretColor;
      context.lineWidth = isDown ? 5 : 2;
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, this.pen / 2 + 3, 0, 7);
      context.stroke();
    }
  }

  // The file to send, and its name: the picture as it was given, or the strokes as a PNG.
  async file() {
    if (this.picture) return [this.picture.file, this.picture.name];
    const canvas = new OffscreenCanvas(WIDTH * SENT, HEIGHT * SENT);
    const context = canvas.getContext("2d");
    context.scale(SENT, SENT);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, WIDTH, HEIGHT);
    paint(context, this.strokes, "#000");
    return [await canvas.convertToBlob({ type: "image/png" }), "drawing.png"];
  }
}

function paint(context, strokes, colour) {
  Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    const [[x, y, width]] = stroke;
    context.beginPath();
    context.arc(x, y, width / 2, 0, 7);
    context.fill();
    let from = [x, y];
    // From the middle of each segment to the middle of the next, with the point between as control.
    for (let i = 1; i < stroke.length; i++) {
      const [ax, ay] = stroke[i - 1];
      const [bx, by, b] = stroke[i];
      const to = i === stroke.length - 1 ? [bx, by] : [(ax + bx) / 2, (ay + by) / 2];
      context.lineWidth = b;
      context.beginPath();
      context.moveTo(...from);
      context.quadraticCurveTo(ax, ay, ...to);
      context.stroke();
      from = to;
    }
  }
}

async function bitmap(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    return null;
  }
}

async function smaller(image, scale) {
  const canvas = new OffscreenCanvas(Math.ceil(image.width * scale), Math.ceil(image.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}
