element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-phrase]');
  if (chip) trigger('click', {phrase: chip.dataset.phrase});
});
