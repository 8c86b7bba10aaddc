const move = (slider) => {
  const pair = slider.closest('.lk-ba-pair');
  pair.style.setProperty('--at', slider.value + '%');
};
element.addEventListener('input', (event) => { if (event.target.type === 'range') move(event.target); });
watch('value', () => element.querySelectorAll('input[type=range]').forEach((slider) => {
  slider.value = 50;
  move(slider);
}));
