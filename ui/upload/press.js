element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-photo]');
  if (!button) return;
  button.disabled = true;
  trigger('click', {photo: button.dataset.photo, action: button.dataset.action});
});
element.addEventListener('change', (event) => {
  const input = event.target.closest('input[data-photo]');
  if (input) trigger('click', {photo: input.dataset.photo, action: 'caption', value: input.value});
});
