const hush = (left) => {
  const said = element.querySelector('[data-plot]');
  const plot = said && document.getElementById(said.dataset.plot);
  if (plot) plot.setAttribute('aria-hidden', 'true');
  else if (said && left) setTimeout(() => hush(left - 1), 300);
};
watch('value', () => hush(20));
hush(20);
