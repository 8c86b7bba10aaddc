let pressed = null, over = 0;
const again = () => pressed && [...element.querySelectorAll('button[data-picture]')].find(
  (button) => button.dataset.picture === pressed.picture && button.dataset.kind === pressed.kind);
const free = () => element.querySelectorAll('[aria-disabled]').forEach((one) => one.removeAttribute('aria-disabled'));
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-picture]');
  if (!button || Date.now() < over) return;
  over = Date.now() + 400;
  button.setAttribute('aria-disabled', 'true');
  pressed = {...button.dataset};
  trigger('click', {picture: pressed.picture, action: pressed.action});
  const target = {vary: '#lk-vary', compare: '#lk-compare', use: '#lk-prompt', finish: '#lk-finish'}[pressed.kind];
  setTimeout(() => {
    free();
    if (target) document.querySelector(target)?.scrollIntoView({block: 'nearest', behavior: 'smooth'});
  }, 900);
});
watch('value', () => {
  free();
  const button = again(), now = document.activeElement;
  if (button && now !== button && (now === document.body || element.contains(now))) button.focus({preventScroll: true});
  pressed = null;
});
