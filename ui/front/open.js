const KEY = 'likeness-tab';
const tabs = () => [...document.querySelectorAll('#lk-tabs [role=tab]')];
const open = (name) => tabs().find((tab) => tab.dataset.tabId === name)?.click();
document.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-tab]');
  if (button) {
    open(button.dataset.tab);
    document.querySelector('#lk-tabs')?.scrollIntoView({block: 'nearest', behavior: 'smooth'});
  }
  const tab = event.target.closest('#lk-tabs [role=tab]');
  if (tab) try { localStorage.setItem(KEY, tab.dataset.tabId); } catch { /* a browser that keeps nothing */ }
});
const again = (left) => {
  if (tabs().length < 4 && left) return void setTimeout(() => again(left - 1), 100);
  try { open(localStorage.getItem(KEY)); } catch { /* a browser that keeps nothing */ }
};
again(100);
const title = document.title;
const percent = () => {
  const done = element.querySelector('[data-done]')?.dataset.done;
  document.title = done ? `${done} · ${title}` : title;
};
watch('value', percent);
percent();
