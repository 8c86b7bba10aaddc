element.addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-copy]');
  if (!button) return;
  const address = button.parentElement.querySelector('a').href;
  try { await navigator.clipboard.writeText(address); button.textContent = button.dataset.copy; }
  catch { button.textContent = address; }
});
