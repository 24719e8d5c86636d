// The request that was sent, as a program: the same bytes to the same address.

// A larger picture is named instead of spelled out; a shell takes no argument of any length.
const MOST_BYTES = 48 * 1024;
const LINE = 64;

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// With `isKeyed` they take the key from the environment variable MNIST_KEY.
export async function snippets({ url, type, file, name }, isKeyed) {
  const isSmall = file.size <= MOST_BYTES;
  const text = isSmall ? base64(new Uint8Array(await file.arrayBuffer())) : "";
  const lines = text.replaceAll(new RegExp(`.{${LINE}}`, "g"), "$&\n").trimEnd();
  const string = JSON.stringify(name);
  const bearer = isKeyed ? ' -H "authorization: Bearer $MNIST_KEY"' : "";
  const options = `curl -s \\\n  ${quoted(url)} \\\n  -H ${quoted(`content-type: ${type}`)}${bearer} --data-binary ${isSmall ? "@-" : quoted(`@${name}`)}`;
  const sources = {
    curl: isSmall ? `base64 -d <<'END' | ${options}\n${lines}\nEND\n` : `${options}\n`,
    python: `import base64
import json
${isKeyed ? "import os\n" : ""}import urllib.request

picture = ${isSmall ? `base64.b64decode("""\n${lines}\n""")` : `open(${string}, "rb").read()`}
url = ${JSON.stringify(url)}
headers = {"content-type": "${type}"${isKeyed ? `, "authorization": f"Bearer {os.environ['MNIST_KEY']}"` : ""}}
request = urllib.request.Request(url, picture, headers)
with urllib.request.urlopen(request) as answer:
    print(json.dumps(json.load(answer)))
`,
    javascript: `${isSmall ? "" : 'import { readFile } from "node:fs/promises";\n\n'}const picture = ${
      isSmall
        ? `Uint8Array.from(atob(\`\n${lines}\n\`), (c) => c.charCodeAt(0))`
        : `await readFile(${string})`
    };
const answer = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  headers: { "content-type": "${type}"${isKeyed ? ", authorization: `Bearer ${process.env.MNIST_KEY}`" : ""} },
  body: picture,
});
console.log(JSON.stringify(await answer.json()));
`,
  };
  // What is shown leaves out most of the picture.
  const count = Math.max(0, lines.split("\n").length - 2);
  const short = count > 1 ? lines.replace(/\n[^]*\n/, `\n[${count} more lines]\n`) : lines;
  const shown = Object.fromEntries(
    Object.entries(sources).map(([key, source]) => [key, text ? source.replace(lines, () => short) : source]),
  );
  return { sources, shown, isSmall };
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) {
    text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  }
  return btoa(text);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return;
  } catch {
    // Browsers lend the clipboard to https and to this machine only.
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.setAttribute("readonly", "");
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser did not copy it; select the text by hand.");
}
