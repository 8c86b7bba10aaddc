element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-picture]');
  if (!button) return;
  button.disabled = true;
  trigger('click', {picture: button.dataset.picture});
});
