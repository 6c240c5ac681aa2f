// What is wrong for screen readers and keyboards, after those rules of axe-core that this page could break.
() => {
    const wrong = [];
    const shown = (e) => e.checkVisibility({ visibilityProperty: true });
    const say = (e, what) => wrong.push(`${what}: ${e.outerHTML.slice(0, 120)}`);
    const text = (e) => [...e.childNodes].map((n) => n.nodeType === 3 ? n.data
        : n.nodeType !== 1 || n.getAttribute("aria-hidden") === "true" ? ""
        : n.getAttribute("aria-label") ?? (n.alt ?? "") + text(n)).join(" ").trim();
    const name = (e) => e.getAttribute("aria-label")
        ?? (e.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ").trim()
        ?? "";
    const named = (e) => name(e) || [...(e.labels ?? [])].map(text).join("") || text(e);
    for (const e of document.querySelectorAll("button, a, input, select, textarea, [tabindex], dialog[open], [role=radiogroup]")) {
        if (shown(e) && e.id !== "main" && !named(e)) say(e, "no name");
    }
    for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) say(e, "no alt");
    const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
    for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`id twice: ${id}`);
    for (const e of document.querySelectorAll("[aria-describedby], [aria-labelledby], label[for]")) {
        const to = (e.getAttribute("aria-describedby") ?? e.getAttribute("aria-labelledby") ?? e.htmlFor).split(" ");
        for (const id of to) if (!ids.includes(id)) say(e, `points to no ${id}`);
    }
    for (const e of document.querySelectorAll("button button, button a, a button, label button")) say(e, "control in a control");
    for (const e of document.querySelectorAll("[aria-hidden=true] button, [aria-hidden=true] input")) say(e, "hidden control");
    for (const e of document.querySelectorAll("ul, dl")) {
        const fit = e.matches("ul") ? ["LI"] : ["DT", "DD", "DIV"];
        for (const child of e.children) if (!fit.includes(child.tagName)) say(child, "does not belong in a list");
    }
    if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");
    if (!document.documentElement.lang) wrong.push("no language");
    const levels = [...document.querySelectorAll("h1, h2, h3")].filter(shown).map((e) => Number(e.tagName[1]));
    if (!document.querySelector("dialog[open]") && levels.some((l, i) => l > (levels[i - 1] ?? 0) + 1)) wrong.push(`headings ${levels}`);
    return wrong;
}
